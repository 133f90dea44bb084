"""Loading a data set: annotations, images, augmentation and batches."""
