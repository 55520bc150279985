#ifndef CARAVAN_COORDINATOR_REJOIN_BACKOFF_H_
#define CARAVAN_COORDINATOR_REJOIN_BACKOFF_H_

// Keeps plans from following a worker that joins and is lost again and again: each time all jobs
// would pause for two plans. Who comes back once or twice is let in at once; whose stages were lost
// three times in a row, with less than five minutes of serving before each, waits for a delay that
// doubles with each further time.
//
//            Joined, lost too often           EndHolds, once the delay is over;
//   (spare) -----------------------> held back --------------------------------> (as others)
//                                                LetIn
//
// What a worker serves over several plans is added up; being spare between them is no service.
//
// A worker is known again by its identity and its name, on whatever host; one without an identity
// by its name and its address without the port, which may be another one each time. So workers of
// one host without identities and of one name share what is held against them: the default name is
// the host's, and --name tells them apart.

#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "absl/time/time.h"
#include "base/clock.h"
#include "cluster/membership.h"

namespace caravan {

/// Not thread-safe.
class RejoinBackoff {
 public:
  struct Options {
    absl::Duration delay = absl::Seconds(30);  // the first; ten times as long at most; zero: none
    const Clock* clock = &SteadyClock();       // outlives the object
  };
  explicit RejoinBackoff(const Options& options) : options_(options) {}

  /// The pipeline that the member holds a stage of serves.
  void Serves(WorkerId worker);
  /// That pipeline ended; whoever serves in none is not changed.
  void Ends(WorkerId worker);
  /// The member is lost, whatever of. `had_stage`: a plan went with it; else nobody was disturbed.
  void Lost(const Member& member, bool had_stage);
  /// A new member: held back from now on, if the lives before this one were lost too often.
  void Joined(const Member& member);

  /// These are held back no more.
  void LetIn(const std::vector<WorkerId>& workers);
  /// Lets those in whose delay is over. Whether there were any.
  bool EndHolds();

  bool HoldsAnybody() const { return !held_.empty(); }
  /// Who is held back: those who were lost least often first, of these who has least yet to wait.
  std::vector<WorkerId> Held() const;
  bool Holds(WorkerId worker) const { return held_.contains(worker); }
  /// How long yet; zero: it is not held back.
  absl::Duration HoldsFor(WorkerId worker) const;
  /// "worker 2 (box-b), lost 3 times in a row, for 28s" of everybody who is held back, with commas
  /// between.
  std::string Describe() const;

 private:
  using Key = std::tuple<std::string, std::string,
                         std::string>;  // identity, name, host (empty: has an identity)
  struct Record {
    int losses = 0;
    absl::Duration last_lost;  // on the clock
  };
  struct Hold {
    absl::Duration until;  // on the clock
    std::string name;      // as DescribeWorker
    int losses = 0;
  };

  absl::Duration TakeServed(WorkerId worker);
  static Key KeyOf(const Member& member);
  absl::Duration DelayAfter(int losses) const;

  const Options options_;
  std::map<Key, Record> records_;                     // of the last hour
  std::map<WorkerId, absl::Duration> serving_since_;  // on the clock; of members that serve
  std::map<WorkerId, absl::Duration> served_;         // before that; of members
  std::map<WorkerId, Hold> held_;                     // members
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_REJOIN_BACKOFF_H_
