#ifndef CARAVAN_KERNELS_OBSERVING_BACKEND_H_
#define CARAVAN_KERNELS_OBSERVING_BACKEND_H_

// A backend with a spectator: what each matrix is multiplied with is shown to an observer, and the
// results are the bits of the backend behind it. Where nobody observes, this is not there, so it
// costs nothing.

#include <cstdint>
#include <memory>

#include "kernels/backend.h"

namespace caravan {

class InputObserver {
 public:
  virtual ~InputObserver() = default;

  /// `w` is about to be multiplied with rows [num_rows, w.cols], f32, of no use afterwards. Called
  /// by the thread that computes; num_rows > 0.
  virtual void Observe(const Matrix& w, const float* rows, int64_t num_rows) = 0;
};

/// Computes as `backend`, and shows `observer` the inputs of every matrix but an embedding's, which
/// has none: those within FFNs and routed experts (of an expert, the rows that chose it) by
/// computing them once more, those of kv_b_proj (the latents that it expands) when they are new to
/// the cache. `observer` outlives the result.
std::unique_ptr<Backend> MakeObservingBackend(std::unique_ptr<Backend> backend,
                                              InputObserver* observer);

}  // namespace caravan

#endif  // CARAVAN_KERNELS_OBSERVING_BACKEND_H_
