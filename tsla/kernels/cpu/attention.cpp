// Taylor attention of order 2 on the CPU: the entry points, called from Python by ctypes. No header of torch is needed,
// so that it compiles in seconds, and works with any version of it.
#include "backward.h"

extern "C" {

// Grows with every change of `Call`.
int64_t tsla_abi() {
    return sizeof(tsla::Call);
}

int tsla_vector_width() {
    return tsla::W;
}

// 0, or 1 if memory ran out.
int tsla_forward(const tsla::Call* call) {
    try {
        tsla::Job job(*call);
        tsla::Forward{job}.run();
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

int tsla_backward(const tsla::Call* call) {
    try {
        tsla::Job job(*call);
        job.pairs = false;  // gradients are sums of differences, for which bfloat16 is too coarse
        tsla::Backward{job}.run();
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}
}
