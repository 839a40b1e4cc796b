// `pointpeft._C`: facts of this build, for `pointpeft info`. The operations are in the libraries, not here.
#include <pybind11/pybind11.h>

#include "levels.h"

#define POINTPEFT_TEXT_(x) #x
#define POINTPEFT_TEXT(x) POINTPEFT_TEXT_(x)

PYBIND11_MODULE(_C, m) {
  m.doc() = "Facts of the build of pointpeft's compiled parts.";
#if defined(__clang__)
  m.attr("compiler") = "clang " __clang_version__;
#else
  m.attr("compiler") = "g++ " __VERSION__;
#endif
  m.attr("nvcc") = POINTPEFT_NVCC;              // "" where the CUDA library was not built
  m.attr("cuda_archs") = POINTPEFT_CUDA_ARCHS;  // in the form of TORCH_CUDA_ARCH_LIST
  m.attr("torch_target") = "2.10";
  m.attr("made_by_intel") = pointpeft::made_by_intel();
  m.def(
      "cpu_level", [] { return pointpeft::cpu_level_name(pointpeft::cpu_level()); },
      "The vector level that CPU kernels use now: portable, avx2, avx512 or amx (POINTPEFT_CPU_LEVEL lowers it).");
  m.def(
      "supported_cpu_level", [] { return pointpeft::cpu_level_name(pointpeft::supported_cpu_level()); },
      "The widest vector level this processor has.");
}
