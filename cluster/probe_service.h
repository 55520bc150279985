#ifndef CARAVAN_CLUSTER_PROBE_SERVICE_H_
#define CARAVAN_CLUSTER_PROBE_SERVICE_H_

// The far end of `caravan probe link`: sends back what it gets, and takes or gives bytes as fast as
// the link does.

#include <atomic>
#include <string>

#include "absl/time/time.h"
#include "caravan/v1/probe.grpc.pb.h"

namespace caravan {

/// What Echo takes at most: 36 tokens of hidden_size 7168.
inline constexpr int kMostEchoBytes = 1 << 20;
/// Of the messages by which rates are measured: large enough that a message costs little, and small
/// enough that some arrive within seconds at 1 Mbit/s.
inline constexpr int kProbeMessageBytes = 256 << 10;
/// How long a measurement of a rate may count.
inline constexpr absl::Duration kLongestCount = absl::Seconds(10);

/// Bytes that nothing on the way can compress.
std::string ProbePayload(int bytes);

/// Thread-safe. To stop: grpc::Server::Shutdown with a deadline, which ends its calls.
class ProbeService final : public v1::Probe::Service {
 public:
  grpc::Status Echo(grpc::ServerContext* context,
                    grpc::ServerReaderWriter<v1::EchoReply, v1::EchoRequest>* stream) override;
  grpc::Status Receive(grpc::ServerContext* context, grpc::ServerReader<v1::ReceiveRequest>* reader,
                       v1::ReceiveReply* reply) override;
  grpc::Status Send(grpc::ServerContext* context, const v1::SendRequest* request,
                    grpc::ServerWriter<v1::SendReply>* writer) override;

 private:
  // Two at once would each get a part of the link, and not know it.
  std::atomic_flag measuring_;
};

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_PROBE_SERVICE_H_
