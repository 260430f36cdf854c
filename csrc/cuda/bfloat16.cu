// Every schedule for bfloat16 logits.
#define KD_NAMESPACE kd_cuda_bfloat16
#define KD_TABLE kBFloat16
#define KD_ELEMENT BFloat16
#include "table.cuh"
