// What native.py asks before it uses the library.

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

// The version of the C ABI: raise it here and in native.py when a signature or a meaning changes.
extern "C" __attribute__((visibility("default"))) int fluvial_abi() { return 8; }

// The instruction sets that every kernel was compiled for, narrowest first, with commas between.
extern "C" __attribute__((visibility("default"))) const char *fluvial_sets() { return FLUVIAL_SETS; }

// Whether the CPU runs the set "avx512vnni"; torch, which names the others, does not tell it apart.
extern "C" __attribute__((visibility("default"))) int fluvial_vnni() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512vnni") != 0;
#else
  return 0;
#endif
}

// Whether the CPU runs the set "dotprod", which torch does not name.
extern "C" __attribute__((visibility("default"))) int fluvial_dotprod() {
#if defined(__aarch64__) && defined(__linux__)
  return (getauxval(AT_HWCAP) >> 20 & 1) != 0;  // HWCAP_ASIMDDP
#else
  return 0;
#endif
}
