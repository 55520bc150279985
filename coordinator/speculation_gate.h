#ifndef CARAVAN_COORDINATOR_SPECULATION_GATE_H_
#define CARAVAN_COORDINATOR_SPECULATION_GATE_H_

// Whether steps should draft: decided by what drafts were seen to gain, for each load apart. Drafts
// are accepted more or less often, and what their rows cost depends on how many sequences share a
// step: nothing but measuring tells whether they pay.
//
//   gain of a way (with drafts, or without) = tokens that a decoding sequence got from a step, mean
//                                             / round trip of a step, median,   over kWindow steps
//
// A sequence sends one slice a round trip, so this is its tokens per second, whatever the number of
// stages and however long nobody decoded. Of noise the median takes no notice until half of the
// steps suffer from it.
//
//                   kWindow steps are known, and the interval is over, or it looks worse
//     +-- holds to one way ---------------------------------------------> tries the other
//     |      (at first: drafts)                                               |
//     +-----------------------------------------------------------------------+
//        after kWindow steps: stays with the other if it gained kMargin more (and then tries again
//        after kFirstInterval steps), goes back if not (and tries again after twice as long as
//        before, kLastInterval at most)
//
// It looks worse when it now gains kMargin less than the other did when last tried: drafts began to
// be refused. That ends the interval early, kFirstInterval steps after the last trial.
//
// Loads are told apart by the number of decoding sequences: 1, 2, 3, 4, up to 6, 8, 12, 16, 24, ...
// so that both ways are compared at like load. Steps whose rows are mostly prompts do not count,
// nor do the first steps after a change, which went round behind those of the other way.

#include <cstdint>
#include <deque>
#include <map>

#include "absl/time/time.h"

namespace caravan {

/// Not thread-safe. Lives as long as a plan: another one has other costs. No clock: time comes with
/// the steps.
class SpeculationGate {
 public:
  static constexpr int64_t kWindow = 32;                  // steps
  static constexpr int64_t kFirstInterval = 8 * kWindow;  // a ninth of the steps are a trial's
  static constexpr int64_t kLastInterval = 32 * kWindow;  // one in 33
  // One sequence's mean over kWindow steps, each of 1 or 2 tokens, has an error of 5% or less.
  static constexpr double kMargin = 0.05;

  /// REQUIRES: num_stages >= 1.
  explicit SpeculationGate(int num_stages) : num_stages_(num_stages) {}

  /// Whether a step that is sent now should draft, while `num_decoding` sequences decode.
  bool Drafts(int64_t num_decoding) const;

  /// A step that decodes, as sent and as it came home.
  struct Step {
    bool drafts = false;          // what Drafts said
    int64_t num_decoding = 0;     // sequences that decoded, in this step or not
    int64_t decoding_slices = 0;  // of this step; at least 1
    int64_t prompt_rows = 0;      // of this step
    int64_t sampled_tokens = 0;   // by its decoding slices
    absl::Duration round_trip;
  };
  /// Steps that came home, in their order. Those that no sequence decoded in are left out.
  void StepReturned(const Step& step);

 private:
  /// What one way gained, from its newest steps.
  class Gain {
   public:
    void Add(double tokens, absl::Duration round_trip);
    void Clear() { steps_.clear(); }
    bool known() const { return steps_.size() == kWindow; }
    /// Tokens per second. REQUIRES: known().
    double TokensPerSecond() const;

   private:
    struct OneStep {
      double tokens;  // of one sequence
      absl::Duration round_trip;
    };
    std::deque<OneStep> steps_;  // kWindow at most
  };
  struct Load {
    bool drafts = true;   // the way it holds to
    bool trying = false;  // the other one, for now
    int64_t steps = 0;    // since a trial began or ended
    int64_t interval = kWindow;
    Gain with_drafts;
    Gain without_drafts;

    bool drafts_now() const { return drafts != trying; }
    Gain& held() { return drafts ? with_drafts : without_drafts; }
    Gain& other() { return drafts ? without_drafts : with_drafts; }
  };

  static int64_t LoadClass(int64_t num_decoding);
  static bool TrialIsDue(Load& load);
  static void EndTrial(Load& load);

  const int num_stages_;
  std::map<int64_t, Load> loads_;  // by LoadClass
  bool way_ = true;                // of the last step that came home
  int64_t steps_that_way_ = 0;     // in a row
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_SPECULATION_GATE_H_
