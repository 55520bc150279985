#ifndef CARAVAN_WORKER_EXPERTS_HELD_EXPERTS_H_
#define CARAVAN_WORKER_EXPERTS_HELD_EXPERTS_H_

// The experts of a stage that went (ExpertStore::Release), in the memory in which they lay, for the
// next stage of its worker: it begins with those of the layers that both have, and with what was
// learned of their use.
//
// A value, for one thread at a time.

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "base/buffer.h"
#include "worker/experts/expert_cache.h"
#include "worker/experts/expert_key.h"

namespace caravan {

struct HeldExperts {
  struct Expert {
    ExpertKey key;
    int frame = 0;  // of `memory`: where its run lies, as in the pack
  };

  /// Lets go of all but experts of these layers, of which it keeps those that would give way last,
  /// `most` at most; then brings the memory to that of num_frames frames. Only what lies beyond
  /// their end is copied, and there is never more memory than before or after. Of frames of another
  /// size nothing is kept, nor where the system refuses memory: then there is none.
  /// REQUIRES: layers are ascending; most <= num_frames.
  void Fit(absl::Span<const int> layers, int64_t frame_bytes, int num_frames, int most);

  uint64_t model_fingerprint = 0;  // whose experts they are; 0: nobody said
  std::vector<int> layers;  // of which it had read all that it wanted at the start; ascending
  Buffer memory;            // frames, one after another
  int64_t frame_bytes = 0;
  std::vector<Expert> experts;          // in the order in which they would give way
  UseHistory uses;                      // of the store's cache
  std::optional<UseHistory> card_uses;  // of the card's, where it had one
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_EXPERTS_HELD_EXPERTS_H_
