#ifndef CARAVAN_WORKER_NAMED_MATRICES_H_
#define CARAVAN_WORKER_NAMED_MATRICES_H_

// The matrices of a loaded stage under their names in checkpoints: the way back from StageWeights.

#include <string>
#include <utility>
#include <vector>

#include "model/model_config.h"
#include "model/stage_spec.h"
#include "worker/stage_weights.h"

namespace caravan {

/// Each of them once. `weights` are those of `stage`.
std::vector<std::pair<std::string, Matrix>> NamedMatrices(const ModelConfig& config,
                                                          const StageSpec& stage,
                                                          const StageWeights& weights);

}  // namespace caravan

#endif  // CARAVAN_WORKER_NAMED_MATRICES_H_
