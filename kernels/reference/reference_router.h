#ifndef CARAVAN_KERNELS_REFERENCE_REFERENCE_ROUTER_H_
#define CARAVAN_KERNELS_REFERENCE_REFERENCE_ROUTER_H_

// Backend::Route for one row, in double: see there. A NaN score is chosen last.

#include <cstdint>

#include "kernels/backend.h"

namespace caravan {

/// logits [n_routed_experts]; expert_ids, weights [num_experts_per_tok].
void ReferenceRouteRow(const RouterShape& shape, const float* logits, const float* bias,
                       int32_t* expert_ids, float* weights);

}  // namespace caravan

#endif  // CARAVAN_KERNELS_REFERENCE_REFERENCE_ROUTER_H_
