"""Linear probes: linear models on frozen features, from which tuning starts and with which it is compared."""
