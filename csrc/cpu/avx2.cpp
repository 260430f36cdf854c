// Compiled for AVX2 and FMA (the flags are in setup.py).
#define KD_NAMESPACE kd_avx2
#define KD_TABLE kAvx2
#define KD_TABLE_NAME "avx2"
#include "table.inl"
