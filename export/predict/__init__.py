"""Run an exported model on images. Needs neither torch nor timm."""
