"""How close and how fast a compressed model is: fidelity, thresholds, verification, latency, layer-wise comparison."""
