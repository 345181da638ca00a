// Cross entropy: loss = log(sum over v of e^x_v) - x_label;  d loss / d x_v = softmax(x)_v - [v is the label]
//
// Bytes per logit: 2 without gradient; with it 6 (read twice, written once), of which memory sees 4 as long as the second
// read finds the row in the L2: it runs from the end to the beginning, what came last comes first. At 3 TB/s and V = 128256:
// 1.4 s per million tokens... is what 6 bytes would cost; see kBytes below for the floor.
#ifndef HALO_CUDA_LOSS_CUH
#define HALO_CUDA_LOSS_CUH
#endif
