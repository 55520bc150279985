#include "cli/link_probe.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/status_macros.h"
#include "caravan/v1/probe.grpc.pb.h"
#include "cluster/address.h"
#include "cluster/arrival_meter.h"
#include "cluster/grpc_status.h"
#include "cluster/grpc_transport.h"
#include "cluster/probe_service.h"

namespace caravan {
namespace {

std::shared_ptr<grpc::Channel> Dial(const LinkProbeOptions& options) {
  ChannelOptions channel;
  channel.security = options.security;
  channel.any_peer = true;
  return MakeGrpcChannel(options.address, channel);
}

// A round trip of little else than the way.
constexpr int kSmallBytes = 1;
// Not counted: with the first ones TCP finds out how much the link takes at once.
constexpr int kWarmUpRoundTrips = 10;
// A percentile of fewer would say nothing, however slow the link is.
constexpr size_t kLeastRoundTrips = 10;
// What a call may take beside its duration.
constexpr absl::Duration kSlack = absl::Seconds(20);

/// The value that a share of `values` is not above. REQUIRES: there are some.
double Quantile(std::vector<double>& values, double share) {
  const auto rank = static_cast<ptrdiff_t>(share * static_cast<double>(values.size() - 1) + 0.5);
  std::nth_element(values.begin(), values.begin() + rank, values.end());
  return values[static_cast<size_t>(rank)];
}

/// Measures one link after the other's fashion. Used by one thread.
class Prober {
 public:
  explicit Prober(const LinkProbeOptions& options)
      : options_(options), stub_(v1::Probe::NewStub(Dial(options))) {}

  /// Whether somebody is there who can be probed.
  absl::Status Greet() {
    Call call(options_.stop, options_.connect_timeout);
    const auto stream = stub_->Echo(&call.context);
    v1::EchoRequest request;
    v1::EchoReply reply;
    if (stream->Write(request) && stream->Read(&reply)) stream->WritesDone();
    const absl::Status status = FromGrpcStatus(stream->Finish());
    if (absl::IsDeadlineExceeded(status)) {
      return absl::UnavailableError(absl::StrCat("nobody who can be probed answers at ",
                                                 options_.address, " within ",
                                                 absl::FormatDuration(options_.connect_timeout)));
    }
    if (absl::IsUnavailable(status)) {
      return absl::UnavailableError(absl::StrCat("nobody who can be probed answers at ",
                                                 options_.address, ": ", status.message()));
    }
    return Explain(status);
  }

  absl::StatusOr<LinkProbe::RoundTrips> MeasureRoundTrips(int64_t bytes) {
    Call call(options_.stop, options_.duration + kSlack);
    const auto stream = stub_->Echo(&call.context);
    v1::EchoRequest request;
    request.set_payload(ProbePayload(static_cast<int>(bytes)));
    v1::EchoReply reply;
    std::vector<double> seconds;
    absl::Duration counted_from;
    for (int64_t trip = 0;; ++trip) {
      if (trip == kWarmUpRoundTrips) counted_from = SteadyClock().Now();
      const absl::Duration begin = SteadyClock().Now();
      const bool enough =
          seconds.size() >= kLeastRoundTrips && begin - counted_from >= options_.duration;
      if (enough) break;
      const bool there =
          stream->Write(request, grpc::WriteOptions().set_no_compression()) && stream->Read(&reply);
      if (!there) break;
      if (trip >= kWarmUpRoundTrips) {
        seconds.push_back(absl::ToDoubleSeconds(SteadyClock().Now() - begin));
      }
    }
    stream->WritesDone();
    CARAVAN_RETURN_IF_ERROR(Explain(FromGrpcStatus(stream->Finish())));
    if (seconds.size() < kLeastRoundTrips) return LeftEarly();
    LinkProbe::RoundTrips trips;
    trips.bytes = bytes;
    trips.count = static_cast<int64_t>(seconds.size());
    trips.median_seconds = Quantile(seconds, 0.5);
    trips.p99_seconds = Quantile(seconds, 0.99);
    return trips;
  }

  /// From here to there. Bytes a second.
  absl::StatusOr<double> MeasureRateTo() {
    Call call(options_.stop, 2 * options_.duration + kSlack);
    v1::ReceiveReply reply;
    const auto writer = stub_->Receive(&call.context, &reply);
    v1::ReceiveRequest request;
    request.set_count_ms(static_cast<uint32_t>(absl::ToInt64Milliseconds(options_.duration)));
    request.set_payload(ProbePayload(kProbeMessageBytes));
    while (writer->Write(request, grpc::WriteOptions().set_no_compression())) {
      request.clear_count_ms();
    }
    CARAVAN_RETURN_IF_ERROR(Explain(FromGrpcStatus(writer->Finish())));
    if (reply.bytes() == 0 || reply.nanoseconds() == 0) return LeftEarly();
    return 1e9 * static_cast<double>(reply.bytes()) / static_cast<double>(reply.nanoseconds());
  }

  /// From there to here. Bytes a second.
  absl::StatusOr<double> MeasureRateFrom() {
    Call call(options_.stop, 2 * options_.duration + kSlack);
    const auto reader = stub_->Send(&call.context, v1::SendRequest());
    v1::SendReply reply;
    ArrivalMeter meter(options_.duration);
    bool enough = false;
    while (!enough && reader->Read(&reply)) {
      enough = meter.Arrived(static_cast<int64_t>(reply.payload().size()), SteadyClock().Now());
    }
    if (enough) call.context.TryCancel();
    const absl::Status ended = FromGrpcStatus(reader->Finish());
    if (!enough) {
      CARAVAN_RETURN_IF_ERROR(Explain(ended));
      return LeftEarly();
    }
    return static_cast<double>(meter.bytes()) / absl::ToDoubleSeconds(meter.time());
  }

 private:
  /// A call with a deadline, which ends where a stop is requested too.
  struct Call {
    Call(const std::stop_token& stop, absl::Duration timeout) : cancel(stop, Cancel{&context}) {
      context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
    }

    struct Cancel {
      grpc::ClientContext* context;
      void operator()() const { context->TryCancel(); }
    };
    grpc::ClientContext context;
    std::stop_callback<Cancel> cancel;
  };

  /// What a call's end means to who measures.
  absl::Status Explain(const absl::Status& status) const {
    if (options_.stop.stop_requested()) return absl::CancelledError("measuring was stopped");
    if (absl::IsUnimplemented(status)) {
      return absl::UnimplementedError(absl::StrCat(
          "who answers at ", options_.address,
          " cannot be probed: no caravan coordinator, worker or probe listen of this version"));
    }
    if (absl::IsDeadlineExceeded(status)) {
      return absl::DeadlineExceededError(
          absl::StrCat(options_.address, ": the link is too slow to measure, or broke"));
    }
    return Annotate(status, options_.address);
  }

  absl::Status LeftEarly() const {
    return absl::UnavailableError(absl::StrCat(options_.address, ": the far end hung up"));
  }

  const LinkProbeOptions& options_;
  const std::unique_ptr<v1::Probe::Stub> stub_;
};

nlohmann::json RoundTripsJson(const LinkProbe::RoundTrips& trips) {
  return {{"bytes", trips.bytes},
          {"count", trips.count},
          {"median_seconds", trips.median_seconds},
          {"p99_seconds", trips.p99_seconds}};
}

}  // namespace

absl::StatusOr<LinkProbe> ProbeLink(const LinkProbeOptions& options) {
  CARAVAN_CHECK(options.duration > absl::ZeroDuration() && options.duration <= kLongestCount);
  CARAVAN_CHECK(options.activation_bytes > 0 && options.activation_bytes <= kMostEchoBytes);
  CARAVAN_RETURN_IF_ERROR(CheckAddress(options.address));
  LinkProbe probe;
  probe.address = options.address;
  Prober prober(options);
  CARAVAN_RETURN_IF_ERROR(prober.Greet());
  // Before the rates, whose last bytes may be in buffers on the way for a while.
  CARAVAN_ASSIGN_OR_RETURN(probe.small, prober.MeasureRoundTrips(kSmallBytes));
  CARAVAN_ASSIGN_OR_RETURN(probe.activations, prober.MeasureRoundTrips(options.activation_bytes));
  CARAVAN_ASSIGN_OR_RETURN(probe.to_bytes_per_second, prober.MeasureRateTo());
  CARAVAN_ASSIGN_OR_RETURN(probe.from_bytes_per_second, prober.MeasureRateFrom());
  return probe;
}

Box::Network NetworkOf(const LinkProbe& probe) {
  Box::Network network;
  network.name = absl::StrCat("to ", probe.address);
  network.bytes = std::min(probe.to_bytes_per_second, probe.from_bytes_per_second);
  network.latency_seconds = probe.small.median_seconds / 2;
  constexpr char kMeasured[] = "measured by caravan probe";
  network.sources = {{"bytes_per_second", kMeasured}, {"latency_seconds", kMeasured}};
  return network;
}

std::string LinkProbeTable(const LinkProbe& probe) {
  std::string table =
      absl::StrFormat("the link to %s, by streams of gRPC\n\n%-24s%12s%12s%10s\n", probe.address,
                      "there and back, ms", "median", "p99", "trips");
  for (const LinkProbe::RoundTrips* const trips : {&probe.small, &probe.activations}) {
    const std::string bytes =
        trips->bytes == 1 ? "1 byte" : absl::StrFormat("%d bytes each way", trips->bytes);
    absl::StrAppendFormat(&table, "%-24s%12.3f%12.3f%10d\n", bytes, 1e3 * trips->median_seconds,
                          1e3 * trips->p99_seconds, trips->count);
  }
  absl::StrAppendFormat(&table, "\n%-24s%12s%12s\n", "rate", "MB/s", "Mbit/s");
  absl::StrAppendFormat(&table, "%-24s%12.2f%12.1f\n", "from here to there",
                        1e-6 * probe.to_bytes_per_second, 8e-6 * probe.to_bytes_per_second);
  absl::StrAppendFormat(&table, "%-24s%12.2f%12.1f\n", "from there to here",
                        1e-6 * probe.from_bytes_per_second, 8e-6 * probe.from_bytes_per_second);
  return table;
}

nlohmann::json LinkProbeJson(const LinkProbe& probe) {
  return {{"address", probe.address},
          {"round_trips",
           {{"small", RoundTripsJson(probe.small)},
            {"activations", RoundTripsJson(probe.activations)}}},
          {"to_bytes_per_second", probe.to_bytes_per_second},
          {"from_bytes_per_second", probe.from_bytes_per_second}};
}

}  // namespace caravan
