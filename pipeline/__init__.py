"""One run of main_imagenet.py: quantize, run both networks, correct, save."""
