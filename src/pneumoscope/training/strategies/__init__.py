"""Ways to learn a new set without losing the earlier ones, each in a module that names its source.

A strategy touches a training in one of four places, and combines with those that touch others:

- what it is shown: `rehearsal` (a bounded store of earlier slices; all of them is joint training);
- what it is asked: `penalties` (elastic weight consolidation, learning without forgetting), added to the task's loss;
- what may move: `TrainConfig.frozen` (the encoder, or all but the normalisation, see `normalisation`);
- what is kept of it: `averaging` (a mix of the weights before and after), `normalisation` (normalisation statistics per
  site) and `selector` (the network of every site, picked by how the scan looks).
"""
