#ifndef CARAVAN_KERNELS_REFERENCE_REFERENCE_BACKEND_H_
#define CARAVAN_KERNELS_REFERENCE_REFERENCE_BACKEND_H_

// The yardstick for every other backend: each operation written out as its paper states it, one
// loop after another, in double, rounded to float once at the end. Attention is the expanded
// textbook form, so that it checks the absorbed one independently. Shares nothing with the fast
// backends but the contract, allocates as it likes, and is slow.

#include <memory>

#include "kernels/backend.h"

namespace caravan {

std::unique_ptr<Backend> MakeReferenceBackend();

}  // namespace caravan

#endif  // CARAVAN_KERNELS_REFERENCE_REFERENCE_BACKEND_H_
