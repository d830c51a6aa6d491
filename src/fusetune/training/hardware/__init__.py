"""Devices, precision, sharding and CUDA-graph replays."""
