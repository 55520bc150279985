#include "cli/made_up_routing_backend.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace caravan {

MadeUpRoutingBackend::MadeUpRoutingBackend(std::unique_ptr<Backend> backend,
                                           const SyntheticRouting::Options& routing,
                                           int first_layer, int num_layers)
    : ForwardingBackend(std::move(backend)),
      routing_(routing),
      first_layer_(first_layer),
      num_layers_(num_layers) {
  CARAVAN_CHECK(first_layer >= 0 && num_layers >= 0 &&
                first_layer + num_layers <= routing.num_layers);
}

std::string MadeUpRoutingBackend::Name() const {
  return ForwardingBackend::Name() + ", made-up routing";
}

void MadeUpRoutingBackend::Route(const RouterShape& shape, const float* /*logits*/,
                                 const float* /*bias*/, int64_t num_rows, int32_t* expert_ids,
                                 float* weights) {
  CARAVAN_CHECK(calls_ < num_layers_);
  CARAVAN_CHECK(shape.n_routed_experts == routing_.options().n_routed_experts &&
                shape.num_experts_per_tok == routing_.options().num_experts_per_tok);
  const int layer = first_layer_ + calls_;
  calls_ = (calls_ + 1) % num_layers_;
  for (int64_t row = 0; row < num_rows; ++row) {
    const SyntheticRouting::Row chosen = routing_.Next(layer);
    expert_ids = std::copy(chosen.expert_ids.begin(), chosen.expert_ids.end(), expert_ids);
    weights = std::copy(chosen.weights.begin(), chosen.weights.end(), weights);
  }
}

}  // namespace caravan
