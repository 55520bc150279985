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
//     +-- holds to one way ------> tries: about every other step goes the other way
//     |   (at first: no guesses)      |
//     +-------------------------------+
//        after kTrialSteps: changes its way if the other one cost kMargin less (and tries again
//        after kFirstInterval steps); else stays (and tries again after twice as long as before,
//        kLastInterval at most)
//
// Both ways within a trial, so that what changes meanwhile, as a cache that fills, meets both.
// Which step goes which is drawn by a hash of its number: steps of several micro-batches come in
// turns, and any rule with a period would give one of them all guesses. (So would the Thue-Morse
// sequence: of the multiples of 3 below 64, it sends all but two one way.)
//
// The other way cost less if that is so in most of the pairs of a step of each. This asks nothing
// of how costs are spread: a few stalls, or micro-batches of which one costs thrice what another
// does, turn few pairs.
//
// Where nothing is missing, guesses are for nothing, and no trial could end: after kIdleSteps in a
// row that brought nothing in, it holds to no guesses.

#include <array>
#include <cstdint>

#include "absl/time/time.h"

namespace caravan {

/// Used by one thread at a time. No clock: time comes with the steps. Allocates nothing.
class GuessGate {
 public:
  static constexpr int kTrialSteps = 64;
  static constexpr int64_t kFirstInterval = 4 * kTrialSteps;
  static constexpr int64_t kLastInterval = 32 * kTrialSteps;
  static constexpr int kIdleSteps = 64;
  // Costs were seen to vary by a fifth, as the numbers of experts that tokens bring do. The pairs
  // of 32 and 32 then tell differences of 5% (a standard error).
  static constexpr double kMargin = 0.05;

  /// Whether the step that begins now should guess.
  bool Guesses() const { return holds_to_guessing_ != goes_the_other_way(); }

  /// A step that did as Guesses() said has ended. One that brought nothing in tells nothing about
  /// costs, and counts in no interval.
  void StepEnded(absl::Duration lost, int64_t brought);

 private:
  /// In seconds.
  struct Costs {
    std::array<double, kTrialSteps> of_steps{};
    int num_steps = 0;
  };

  bool goes_the_other_way() const;
  /// Begins an interval.
  void Hold(bool to_guessing, int64_t interval);
  void EndTrial();

  bool holds_to_guessing_ = false;
  bool trying_ = true;
  uint64_t number_ = 0;     // of the step, over all
  int64_t idle_steps_ = 0;  // in a row
  int64_t steps_ = 0;       // of the interval, that brought something
  int64_t interval_ = kFirstInterval / 2;
  // Of the trial.
  Costs held_;
  Costs other_;
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_EXPERTS_GUESS_GATE_H_
