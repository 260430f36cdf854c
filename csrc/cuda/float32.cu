// Every schedule for float32 logits.
#define KD_NAMESPACE kd_cuda_float32
#define KD_TABLE kFloat32
#define KD_ELEMENT Float32
#include "table.cuh"
