#include "coordinator/cluster_service.h"

#include <grpcpp/grpcpp.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/bounded_queue.h"
#include "base/named_thread.h"
#include "cluster/grpc_status.h"

namespace caravan {
namespace {

// Orders that may wait for one worker's link; a plan sends each worker a few.
constexpr size_t kQueuedOrders = 64;

using OrderQueue = BoundedQueue<v1::WorkerOrder>;

/// The host of a gRPC peer such as "ipv4:10.0.0.2:51234" or "ipv6:%5B::1%5D:51234", as HOST is
/// written in HOST:PORT.
std::string PeerHost(const std::string& peer) {
  const size_t scheme_end = peer.find(':');
  const size_t port_begin = peer.rfind(':');
  if (scheme_end == std::string::npos || port_begin <= scheme_end) return "";
  std::string host = peer.substr(scheme_end + 1, port_begin - scheme_end - 1);
  if (absl::StartsWith(host, "%5B")) host = absl::StrCat("[", host.substr(3, host.size() - 6), "]");
  return host;
}

/// A worker that does not know its own name in the network registers ":PORT"; it is where it calls
/// from.
void FillHost(const std::string& peer, v1::Registration& registration) {
  if (absl::StartsWith(registration.address(), ":")) {
    registration.set_address(absl::StrCat(PeerHost(peer), registration.address()));
  }
}

}  // namespace

grpc::Status ClusterService::Attend(
    grpc::ServerContext* context,
    grpc::ServerReaderWriter<v1::WorkerOrder, v1::WorkerReport>* stream) {
  v1::WorkerReport report;
  if (!stream->Read(&report) || !report.has_registration()) {
    return ToGrpcStatus(absl::InvalidArgumentError("the first report must be a registration"));
  }
  const uint64_t incarnation = report.incarnation();
  v1::Registration registration = report.registration();
  FillHost(context->peer(), registration);

  // Shared with the controller, which may hold the link for longer than this call lasts.
  const auto orders = std::make_shared<OrderQueue>(kQueuedOrders);
  ClusterController::WorkerLink link;
  link.order = [orders](v1::WorkerOrder order) { (void)orders->Push(std::move(order)); };
  link.hang_up = [orders] { orders->Close(); };
  const absl::StatusOr<WorkerId> id = loop_->Call<absl::StatusOr<WorkerId>>(
      [&] { return controller_->Join(incarnation, registration, link); },
      absl::UnavailableError("the coordinator is leaving"));
  if (!id.ok()) return ToGrpcStatus(id.status());

  NamedThread writer("order-writer", [&] {
    while (std::optional<v1::WorkerOrder> order = orders->Pop()) {
      if (!stream->Write(*order)) return;
    }
    // The controller hung up, or the worker ended the stream; Read returns either way.
    context->TryCancel();
  });
  absl::Status status;
  while (status.ok() && stream->Read(&report)) {
    status = loop_->Call<absl::Status>([&] { return controller_->Report(*id, report); },
                                       absl::UnavailableError("the coordinator is leaving"));
  }
  // The worker may end the stream only after Departure or Dismissal; else it is lost.
  (void)loop_->Call<bool>(
      [&] {
        controller_->Gone(*id, incarnation);
        return true;
      },
      false);
  orders->Close();
  writer.Join();
  return ToGrpcStatus(status);
}

grpc::Status ClusterService::GetStatus(grpc::ServerContext* /*context*/,
                                       const v1::GetStatusRequest* /*request*/,
                                       v1::GetStatusResponse* response) {
  return ToGrpcStatus(loop_->Call<absl::Status>(
      [&] {
        *response = controller_->Status();
        return absl::OkStatus();
      },
      absl::UnavailableError("the coordinator is leaving")));
}

}  // namespace caravan
