"""The engine that optimises a unit: what AdaRound, QDrop and PD-Quant share."""
