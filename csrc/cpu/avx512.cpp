// Compiled for AVX-512 (F, BW, DQ, VL) (the flags are in setup.py).
#define KD_NAMESPACE kd_avx512
#define KD_TABLE kAvx512
#define KD_TABLE_NAME "avx512"
#include "table.inl"
