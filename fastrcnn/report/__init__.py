"""Write HTML pages and drawings: the evaluation report, comparisons, RoI pooling, and the tables of the paper."""
