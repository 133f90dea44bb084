"""Read and write weights of this and other programs, and determine the pixel normalisation that weights expect."""
