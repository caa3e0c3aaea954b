extern "C" int fluvial_abi() { return 1; }
