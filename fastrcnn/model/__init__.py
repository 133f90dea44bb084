"""The network, the sampling of RoIs it is trained on, its loss, and the way from its outputs to detections."""
