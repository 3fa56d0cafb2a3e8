"""Training one network for many bitwidths, and watching what each costs."""
