"""One thread per test process: the suite shares two cores with Ray, and small tensors gain nothing from more."""

import torch

torch.set_num_threads(1)
