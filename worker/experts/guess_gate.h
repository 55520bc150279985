#ifndef CARAVAN_WORKER_EXPERTS_GUESS_GATE_H_
#define CARAVAN_WORKER_EXPERTS_GUESS_GATE_H_

// Whether steps should guess the next layer's experts: decided by what guesses were seen to save. A
// right one begins its read sooner; a wrong one takes some of the disk, and of the slots, from what
// is needed. Which weighs more depends on the model, the disk and the cache.
//
//   cost of a step = (waited for reads + spent on guessing) / experts that it had to bring in,
//                                                             those guessed included
//
// Per expert, because steps want more or fewer that are not in memory; and what guessing takes
// while reads are under way is waited for that much less, so the sum is what the step lost.
//
//              after an interval
//     +-- holds to one way ------> tries: every other step goes the other way
//     |   (at first: no guesses)      |
//     +-------------------------------+
//        after kTrialSteps: changes its way if the other one's median cost was kMargin less (and
//        tries again after kFirstInterval steps); else stays (and tries again after twice as long
//        as before, kLastInterval at most)
//
// By turns, so that what changes meanwhile, as a cache that fills, meets both.

#include <array>
#include <cstdint>

#include "absl/time/time.h"

namespace caravan {

/// Used by one thread at a time. No clock: time comes with the steps. Allocates nothing.
class GuessGate {
 public:
  static constexpr int kTrialSteps = 64;  // of each way half
  static constexpr int64_t kFirstInterval = 4 * kTrialSteps;
  static constexpr int64_t kLastInterval = 32 * kTrialSteps;
  // The numbers of experts that tokens bring, and with them the costs, were seen to vary by a
  // fifth: medians of 32 then err by 4%.
  static constexpr double kMargin = 0.05;

  /// Whether the step that begins now should guess.
  bool Guesses() const { return holds_to_guessing_ != goes_the_other_way(); }

  /// A step that did as Guesses() said has ended. One that brought nothing in tells nothing, and is
  /// left out.
  void StepEnded(absl::Duration lost, int64_t brought);

 private:
  bool goes_the_other_way() const { return trying_ && steps_ % 2 == 1; }
  void EndTrial();

  bool holds_to_guessing_ = false;
  bool trying_ = true;
  int64_t steps_ = 0;  // of the trial, or of the interval
  int64_t interval_ = kFirstInterval / 2;
  // Of a trial, in seconds.
  std::array<double, kTrialSteps / 2> held_costs_{};
  std::array<double, kTrialSteps / 2> other_costs_{};
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_EXPERTS_GUESS_GATE_H_
