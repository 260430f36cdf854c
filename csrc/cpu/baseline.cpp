// Compiled for the floor of the platform, x86-64-v2 on x86 (the flags are in setup.py).
#define KD_NAMESPACE kd_baseline
#define KD_TABLE kBaseline
#define KD_TABLE_NAME "baseline"
#include "table.inl"
