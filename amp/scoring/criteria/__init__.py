"""What ranks neurons, one file a criterion; its name is the file's.

Each file holds its equation, as functions of tensors alone, and two things that `amp.scoring` looks for:

    PASSES          the passes over images that it takes, and how many bytes each takes beside the weights; {}: none
    score(scoring)  one (H,) fp32 tensor a block, equal on every process; the larger, the more is lost with a neuron

`amp.scoring.criterion` declares both (`Criterion`) and what `score` is handed (`Scoring`).
"""
