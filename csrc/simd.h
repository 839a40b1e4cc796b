// Attributes that raise the vector level of one function, for those written in intrinsics.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#define POINTPEFT_AVX512 \
  __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,bmi2,popcnt,prefer-vector-width=512")))
#define POINTPEFT_AVX2 __attribute__((target("avx2,bmi,popcnt")))
#endif
