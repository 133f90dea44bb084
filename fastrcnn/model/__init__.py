"""The network, RoI sampling, the loss, and postprocessing of outputs to detections."""
