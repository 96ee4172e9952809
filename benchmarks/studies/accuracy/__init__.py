"""Compare the accuracy of heads on frozen backbones with that of networks that are fine-tuned.

A cell is an image set, a backbone and a number of training images per class. In each cell, several
draws choose the training images, the same ones for all contenders; the other images are the test.
"""
