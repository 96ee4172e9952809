"""Run exported models on images, without torch."""
