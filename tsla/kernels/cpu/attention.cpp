// Number of this library's calling convention.
extern "C" int tsla_abi() { return 1; }
