// Every schedule for float16 logits.
#define KD_NAMESPACE kd_cuda_float16
#define KD_TABLE kFloat16
#define KD_ELEMENT Float16
#include "table.cuh"
