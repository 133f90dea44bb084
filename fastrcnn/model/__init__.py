"""The network, RoI sampling, the loss, and postprocessing of outputs into detections."""
