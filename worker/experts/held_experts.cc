#include "worker/experts/held_experts.h"

#include <algorithm>
#include <cstring>

namespace caravan {

void HeldExperts::Fit(absl::Span<const int> wanted_layers, int64_t wanted_bytes, int num_frames,
                      int most) {
  const auto is_wanted = [&](int layer) {
    return std::binary_search(wanted_layers.begin(), wanted_layers.end(), layer);
  };
  std::erase_if(layers, [&](int layer) { return !is_wanted(layer); });
  std::erase_if(experts, [&](const Expert& expert) { return !is_wanted(expert.key.layer); });
  if (frame_bytes != wanted_bytes) experts.clear();
  if (std::ssize(experts) > most) experts.erase(experts.begin(), experts.end() - most);

  // As there are no more experts than frames, each has a free one.
  std::vector<bool> taken(static_cast<size_t>(num_frames));
  for (const Expert& expert : experts) {
    if (expert.frame < num_frames) taken[static_cast<size_t>(expert.frame)] = true;
  }
  int free = 0;
  for (Expert& expert : experts) {
    if (expert.frame < num_frames) continue;
    while (taken[static_cast<size_t>(free)]) ++free;
    std::memcpy(memory.data() + free * frame_bytes, memory.data() + expert.frame * frame_bytes,
                static_cast<size_t>(frame_bytes));
    expert.frame = free++;
  }
  if (experts.empty()) memory = Buffer();
  if (memory.size() == 0 || !memory.Resize(num_frames * frame_bytes).ok()) {
    memory = Buffer();
    experts.clear();
  }
  // Where nothing is left, the stage begins as any does.
  if (experts.empty()) layers.clear();
}

}  // namespace caravan
