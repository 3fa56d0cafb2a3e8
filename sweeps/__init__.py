"""Many runs of main_imagenet.py: which, by whom, and what came out."""
