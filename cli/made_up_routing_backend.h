#ifndef CARAVAN_CLI_MADE_UP_ROUTING_BACKEND_H_
#define CARAVAN_CLI_MADE_UP_ROUTING_BACKEND_H_

// A backend whose routers choose as a trained model's do, for benchmarks: those of random weights
// choose all experts alike, and no cache is of much use to them.

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/forwarding_backend.h"
#include "worker/experts/synthetic_routing.h"

namespace caravan {

/// Computes as `backend`, but for Route, whose choices are SyntheticRouting's: the logits matter no
/// more, and weights are as they come from there.
class MadeUpRoutingBackend : public ForwardingBackend {
 public:
  /// For a stage that has num_layers of the layers which `routing` counts, from first_layer on;
  /// Route is called for them in turn. REQUIRES: SyntheticRouting::Check(routing) is OK, and the
  /// layers are within it.
  MadeUpRoutingBackend(std::unique_ptr<Backend> backend, const SyntheticRouting::Options& routing,
                       int first_layer, int num_layers);

  std::string Name() const override;
  /// REQUIRES: the shape's experts and choices are those of the routing.
  void Route(const RouterShape& shape, const float* logits, const float* bias, int64_t num_rows,
             int32_t* expert_ids, float* weights) override;

 private:
  SyntheticRouting routing_;
  const int first_layer_;
  const int num_layers_;
  int calls_ = 0;  // of this turn
};

}  // namespace caravan

#endif  // CARAVAN_CLI_MADE_UP_ROUTING_BACKEND_H_
