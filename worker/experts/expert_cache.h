#ifndef CARAVAN_WORKER_EXPERTS_EXPERT_CACHE_H_
#define CARAVAN_WORKER_EXPERTS_EXPERT_CACHE_H_

// Which expert lies in which slot of a tier: the decisions, without bytes. The store obeys it, and
// `caravan bench cache` replays traces through it.
//
// Used by one thread at a time. Once made, nothing allocates but History and InOrder.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "worker/experts/cache_policy.h"
#include "worker/experts/expert_key.h"

namespace caravan {

/// What a cache learned of uses, for the one of another stage of the same model.
struct UseHistory {
  std::string policy;
  // Of experts that were used, in the order of their keys; as if the next step were step 0.
  std::vector<std::pair<ExpertKey, double>> scores;
  double used_a_layer = 0;  // experts, in the last step
};

class ExpertCache {
 public:
  struct Shape {
    int first_layer = 0;  // of those with experts that the stage has
    int num_layers = 0;
    int experts_per_layer = 0;
    int num_slots = 0;
  };

  ExpertCache(const Shape& shape, std::unique_ptr<CachePolicy> policy);

  /// The expert's slot; nullopt: it has none.
  std::optional<int> Find(ExpertKey key) const;
  /// The next uses are of `num_experts` experts of one layer, in step `step`. Steps only go up.
  void BeginVisit(int64_t step, int num_experts);
  /// Counts a use, of an expert with a slot or without. Returns the score for Take: any will do,
  /// but where what is needed puts out what is needed sooner. That is so when the visit is of more
  /// than half of a layer, or the last step used more experts than there are slots; then it is the
  /// score before this use, as this one raised it above those of the layers that are still to come,
  /// though their experts are as much in use. So a fixed set stays.
  double Use(ExpertKey key, const ExpertUse& use);
  /// Gives `key` a slot: a free one, else that of the expert with the lowest score whose slot
  /// nobody holds, if that is below `score`; of equal ones, the slot that was given longest ago.
  /// The slot is then held once. nullopt: none gives way. REQUIRES: it has none.
  std::optional<int> Take(ExpertKey key, double score = kAnyScore);
  /// Makes `slot` free. REQUIRES: it is held exactly once; that hold ends.
  void Drop(int slot);

  /// A slot that is held does not give way. Holds are counted.
  void Hold(int slot);
  void Release(int slot);

  double score(ExpertKey key) const;
  /// For what was learned in earlier runs. REQUIRES: finite.
  void SetScore(ExpertKey key, double score);

  /// What was learned until `step`, the last one (-1: there was none).
  UseHistory History(int64_t step) const;
  /// Goes on from there, with what is of these layers; of another policy nothing is of use.
  /// REQUIRES: no visit has begun.
  void Continue(const UseHistory& history);
  /// Those that have a slot, in the order in which they would give way if none is used any more.
  std::vector<ExpertKey> InOrder() const;

  const Shape& shape() const { return shape_; }
  const CachePolicy& policy() const { return *policy_; }

 private:
  struct Slot {
    int expert = -1;  // index; -1: free
    int holds = 0;
    int64_t given = 0;  // when, in the order of Takes
  };

  size_t IndexOf(ExpertKey key) const;
  ExpertKey KeyOf(size_t index) const;
  bool Knows(ExpertKey key) const;
  /// The slot that is free, else the next one to give way.
  std::optional<int> NextToGive() const;

  const Shape shape_;
  const std::unique_ptr<CachePolicy> policy_;
  std::vector<Slot> slots_;
  std::vector<int> slot_of_;    // by IndexOf; -1: none
  std::vector<double> scores_;  // by IndexOf
  int64_t next_given_ = 0;
  int64_t step_ = -1;
  int64_t used_in_step_ = 0;  // experts
  bool outgrown_ = false;     // by the step before
  bool keeps_ = false;        // the visit puts out nothing that scored more before it
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_EXPERTS_EXPERT_CACHE_H_
