-- Send every MR series to hipscore as soon as no more of its images arrive (StableAge), as
-- one job and one association. hipscore decides what it can score and says why where it
-- cannot. Its own SEG and SR are other modalities and are not sent back.
function OnStableSeries(seriesId, tags, metadata)
   local series = ParseJson(RestApiGet('/series/' .. seriesId))
   if series['MainDicomTags']['Modality'] == 'MR' then
      RestApiPost('/modalities/hipscore/store',
                  '{"Resources": ["' .. seriesId .. '"], "Synchronous": false}')
   end
end
