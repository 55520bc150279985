// A library that says it is NCCL of some version, and has no more than that.

extern "C" int ncclGetVersion(int* version) {
  *version = SEEMING_VERSION;
  return 0;
}
