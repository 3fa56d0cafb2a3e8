"""The engine that optimises a unit, shared by AdaRound, QDrop and PD-Quant."""
