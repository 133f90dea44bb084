"""What people look at: the report on mistakes, comparisons, drawings of RoI pooling."""
