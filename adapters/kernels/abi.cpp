// What native.py asks before it uses the library.

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
