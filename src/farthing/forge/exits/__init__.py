"""Early exits: added to a trained network, trained with it, and given thresholds on data that was held out."""
